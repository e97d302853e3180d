"""What happens while training: rows seen, draws by group and decile, and losses now."""
