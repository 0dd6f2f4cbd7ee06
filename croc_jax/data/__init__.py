"""Images: where they come from, their crops on the host, their colors on the device."""
