"""Reward-weighted regression of a diffusion model (Black et al. 2023, arXiv 2305.13301)."""
