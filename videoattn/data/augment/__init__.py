"""Changes of a clip's pixels after decoding: resizing, cropping, RandAugment, erasing, mixing, flips."""
