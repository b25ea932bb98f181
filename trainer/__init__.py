"""Fine-tune image generators with reinforcement learning."""
