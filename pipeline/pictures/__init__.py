"""Pictures: decoding and encoding, thumbnails and parts, perceptual hashes and signatures, models that look at them."""
