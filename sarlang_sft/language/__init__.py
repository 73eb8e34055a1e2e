"""Language from boxes: facts of an image put into questions, captions and dialogues, and read back to be checked."""
