"""HunyuanVideo's causal VAE decoder as a stream: latents in, frames out, each latent decoded once.

Letters: F frames of a piece, H and W its height and width at that level, C channels. Activations are channels-last,
[F, H, W, C]; what a convolution reads is padded by one pixel that repeats the border and begins with carried frames.
"""
