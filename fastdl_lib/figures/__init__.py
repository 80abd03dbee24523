"""Every figure of the course, and the sliders."""
