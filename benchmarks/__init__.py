"""What Salon claims about its speed, as programs that measure it."""
