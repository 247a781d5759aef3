// Pictures: read in the browser and kept as data URLs, which a request can carry and a reload can restore.

const LONGEST_SIDE = 1024;
// A file this big is encoded anew even if its sides are short: requests and the session's store are limited.
const LARGEST_FILE = 1 << 20;
// What servers and workers decode as upstream does.
const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"];

/** `{url, name}` of a file; throws an Error with a sentence to show if it is not a picture. */
export async function readPicture(file) {
  const name = file.name?.replace(/\.[^.]*$/, "") || "picture";
  const url = await dataUrl(file);
  const image = await decode(url).catch(() => {
    throw new Error(`“${file.name || "The file"}” is not a picture that this browser can read.`);
  });
  const longest = Math.max(image.naturalWidth, image.naturalHeight);
  const small = longest <= LONGEST_SIDE && file.size <= LARGEST_FILE;
  const keep = small && SENT_AS_THEY_ARE.includes(file.type) && !(await hasExif(file));
  return { url: keep ? url : reencode(image, longest, file.type), name };
}

/** The picture at an address of this page's own. */
export async function fetchPicture(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`The example's picture ${address} is missing.`);
  const blob = await response.blob();
  return readPicture(new File([blob], address.split("/").pop(), { type: blob.type }));
}

export async function decode(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  if (!image.naturalWidth) throw new Error("a picture without a size");
  return image;
}

/** The centre square, which is what a model sees of a picture, drawn onto `context` at `size`. */
export function drawCentreSquare(context, image, size) {
  const side = Math.min(image.naturalWidth, image.naturalHeight);
  const left = (image.naturalWidth - side) / 2;
  const top = (image.naturalHeight - side) / 2;
  context.imageSmoothingQuality = "high";
  context.drawImage(image, left, top, side, side, 0, 0, size, size);
}

/** Whether a file may say how it is to be turned: browsers follow that, and models do not. */
async function hasExif(file) {
  return (await file.slice(0, 1 << 16).text()).includes("Exif\0\0");
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`“${file.name}” could not be read.`));
    reader.readAsDataURL(file);
  });
}

function reencode(image, longest, type) {
  const scale = Math.min(1, LONGEST_SIDE / longest);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL(type === "image/jpeg" ? "image/jpeg" : "image/png", 0.92);
}
