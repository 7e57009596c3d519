/** Does nothing until it is ended. */
setInterval(() => {}, 60_000);
console.log("ready");
