"""Files and folders: whole or not at all, resumable, local or remote; progress."""
