"""The file formats of neighbouring projects, to and from data folders."""
