"""Update rules with the torch.optim contract."""
