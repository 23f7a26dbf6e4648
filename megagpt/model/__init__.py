"""The decoder: its shape, names, costs, layers and the plain reference they must equal."""
