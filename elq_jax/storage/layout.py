"""Names the files of a linker directory."""

CONFIG, PARAMETERS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
ORIGINAL_PARAMETERS = "original.safetensors"  # of linkers that `convert` wrote
CATALOGUE, EMBEDDINGS, INDEX = "catalogue.arrow", "embeddings", "index"
CANDIDATES, NAMES, CONFIDENCE = "candidates.json", "names", "confidence.json"
WORDS = "words"
# Of linkers whose catalogue was changed: the list of its segments, and a folder for those.
SEGMENT_LIST, SEGMENTS = "catalogue.json", "segments"
