"""A tiny Stable Diffusion of coloured digits: its data, its training, its quality."""
