"""Names of the files of a linker directory."""

CONFIG, PARAMETERS = "config.json", "model.safetensors"
CATALOGUE, EMBEDDINGS, INDEX = "catalogue.arrow", "embeddings", "index"
