"""Teach vision-language models to read radar images."""
