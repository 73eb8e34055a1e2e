"""SARCLIP and SARCap: contrastive models and captioners on open_clip."""
