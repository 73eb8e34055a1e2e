"""Template captions in other words: asked of a served model, held to the same facts, dealt out to the images."""
