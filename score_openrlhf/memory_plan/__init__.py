"""A configuration and a cluster in; what every GPU holds in every phase, what does not fit and what would, out."""
