"""L2-regularised logistic regression on features, at every strength of a grid at once.

    found = logistic.search(train, validation, classes)  # C chosen on validation, then fitted to both
    logits = test.features @ found.kernel + found.bias

The protocol of CLIP (2103.00020) and DINOv2 (2304.07193).
"""
