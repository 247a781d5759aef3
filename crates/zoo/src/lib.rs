//! Opens a model folder: config, weights, tokenizer and preprocessing, ready to run.
