"""The torch backend where the equation itself would need too much memory."""
