"""Whether a training run fits, what it will do a second and what it costs, before a machine is booked."""
