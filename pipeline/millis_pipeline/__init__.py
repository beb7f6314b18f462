"""The Millis pipeline: from a checkpoint or labelled data to published, measured models."""
