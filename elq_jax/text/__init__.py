"""Text -> tokens -> padded arrays, and windows of long texts."""
