"""Wikipedia dumps: a catalogue, names and linked passages from an XML dump, in any language."""
