"""What a study leaves for people: report, model card, tables, plots."""
