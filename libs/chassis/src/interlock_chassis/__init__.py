"""What every Interlock service needs and none owns."""
