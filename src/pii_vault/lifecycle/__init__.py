"""What happens to keys over their life: they are made, take over from one another, and end."""
