"""Keys, certificates, the roster of sites, and signed letters. What a site's operator allows is in `fedft.client`."""
