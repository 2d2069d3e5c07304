"""From scores to links: decoding, the linker directory, the public EntityLinker."""
