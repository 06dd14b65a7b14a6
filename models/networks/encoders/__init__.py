"""Face encoders with the public state_dict names."""
