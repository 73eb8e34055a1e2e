"""Boxes and masks that detection and segmentation sets come with, read and cleaned: what texts are built from."""
