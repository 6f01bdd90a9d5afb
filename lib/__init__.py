"""The RED Book's package: poison an image classifier, find the backdoor, take it out."""

__version__ = "0.1.0"
