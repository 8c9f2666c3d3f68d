"""What a hospital decides and can show: policy, approval, audit, failure reports."""
