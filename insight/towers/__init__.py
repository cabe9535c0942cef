"""Encoders of timm, torchvision and transformers as towers; needs the extra `pretrained`."""
