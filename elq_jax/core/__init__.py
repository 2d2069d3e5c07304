"""What everything else stands on: errors, devices."""
