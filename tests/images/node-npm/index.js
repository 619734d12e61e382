const pad = require("left-pad");
const ms = require("ms");
console.log(pad(ms("2 days"), 12, "0"));
