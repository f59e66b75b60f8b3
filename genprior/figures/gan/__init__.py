"""What generative adversarial networks learn, and how they fail."""
