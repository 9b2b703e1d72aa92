"""The comparison of device classes as one HTML file that needs no network."""
