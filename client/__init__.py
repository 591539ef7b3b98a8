"""A client's side of a run: one turn of training, and a site's settings, policy and disk."""
