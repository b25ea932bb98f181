"""What algorithms share that fine-tune a denoising UNet: schedule, policy, optimisation."""
