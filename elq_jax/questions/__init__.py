"""Labelled questions: read, resolved against a catalogue, tokenised, batched."""
