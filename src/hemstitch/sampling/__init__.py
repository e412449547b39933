"""Which data when: shuffled epochs that resume where they stopped, growing samples, replay."""
