//! Pictures and text as upstream reads them: decoding, resizing, normalisation, tokenisation. Knows no tensor library.
