"""The multi-scale VQ-VAE: images to tokens of every scale and back."""
