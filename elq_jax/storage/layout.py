"""Names of the files of a linker directory."""

CONFIG, PARAMETERS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
CATALOGUE, EMBEDDINGS, INDEX = "catalogue.arrow", "embeddings", "index"
