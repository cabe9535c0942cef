"""What training and serving agree on: the batch, images, text."""
