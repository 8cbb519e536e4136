"""A run as it is assembled: model, state, inputs, and the step that trains it."""
