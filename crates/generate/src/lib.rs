//! From logits to token ids: greedy search, beam search, sampling. Knows ids, not strings, and no tensor library.
