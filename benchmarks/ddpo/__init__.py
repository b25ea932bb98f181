"""How fast DDPO trains, beside the DDPO trainer of TRL, at equal mathematics."""
